"""Code that the engine itself loads: it guards keys, routes and media before the engine sees a request."""
