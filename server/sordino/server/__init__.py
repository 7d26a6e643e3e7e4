"""What runs on the coordinator: aggregation, strategy, reports. Never imports torch."""
