"""Writing outcomes to the table, and announcing them."""
