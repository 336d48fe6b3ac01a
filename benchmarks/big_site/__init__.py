"""A site with millions of tasks, made in minutes: for what operators read and do where much has happened."""
