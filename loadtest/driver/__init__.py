"""The load driver: one HTTP/2 client, one HTTP/1.1 client, one loop that sends on schedule."""
