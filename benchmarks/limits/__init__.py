"""What claims of tasks with limits cost, whatever waits beside them."""
