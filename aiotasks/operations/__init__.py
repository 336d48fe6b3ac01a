"""What operators ask of a backend: how it is doing (``status``), and what is wrong (``check``)."""
