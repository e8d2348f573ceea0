"""The lab: real systemd hosts on this machine, and one declared stand-in for each thing it lacks.

``python -m lab up`` boots them, ``python -m lab down`` leaves nothing behind. Production code never imports
this package; ``lab/README.md`` says what stands in for what, and what that cannot show.
"""
