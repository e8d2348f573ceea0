"""What the engine itself loads: keys, routes and media guarded before it sees a request."""
