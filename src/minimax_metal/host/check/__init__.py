"""The post-check: every call the deployment guides show, made with the official clients."""
