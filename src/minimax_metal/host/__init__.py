"""Code that runs on GPU, gateway and cache hosts. The hosts' wheel contains it, and nothing of the
controller.
"""
