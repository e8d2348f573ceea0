"""Hosts of a fleet share one pull: each piece is read from the origin once and passed on over the LAN.

:mod:`.board` decides (which host reads which piece, from whom to get the others, whom to avoid),
:mod:`.pieces` stores pieces, :mod:`.log` is what hosts tell each other, :mod:`.peers` asks the others,
:mod:`.server` is the configuration of the nginx that serves all of it, :mod:`.swarm` runs the pull.
"""
