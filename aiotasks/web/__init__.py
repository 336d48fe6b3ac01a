"""Tasks in a browser: Server-Sent Events of their states, and who may see which."""
