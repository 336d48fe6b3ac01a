"""What a task may ask for beyond Django's Task: one module a policy, and the object that holds them all."""
