"""The older entry point of the engine."""

from sglang_simulated.server import main

if __name__ == "__main__":
    main()
