"""The wire contract between devices and the coordinator."""
