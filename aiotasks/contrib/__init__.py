"""What aiotasks does together with other packages. Each module needs an extra of its name."""
