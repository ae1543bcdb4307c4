"""`sfrl demo`: a short run as one page, with films of what it learned."""
