"""The lab: real systemd hosts on this machine, and one declared stand-in for each thing it lacks.

``python -m lab up`` boots them, ``python -m lab down`` leaves nothing behind. Production code never imports
this package; ``lab/README.md`` describes each stand-in, and what it cannot show.
"""
