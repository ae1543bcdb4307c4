"""A page in the browser that shows runs: `sfrl web`. It reads their folders."""
