"""Hosts of a fleet share one pull: each piece is read from the origin once and passed on over the LAN.

:mod:`.board` decides (who reads what, from whom to take what, whom to avoid), :mod:`.pieces` keeps what is
there, :mod:`.log` is what hosts tell each other, :mod:`.peers` asks the others, :mod:`.server` is the
configuration of the nginx that serves all of it, :mod:`.swarm` runs the pull.
"""
