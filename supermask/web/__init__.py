"""A static page that runs a subnetwork in a browser: `page` writes it, `runtime` fetches what it runs on.

The page's own files are in `static`, as they are served.
"""
