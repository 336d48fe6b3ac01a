"""For operators: the state of a backend (``status``), and the mistakes in its set-up (``check``)."""
