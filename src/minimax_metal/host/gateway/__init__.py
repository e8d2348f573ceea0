"""Code for gateway hosts: the gateway's launch, and its pool of workers."""
