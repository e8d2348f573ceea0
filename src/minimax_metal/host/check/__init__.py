"""The post-check: every call in the deployment guides, made with the official clients."""
