"""What the coordinator and the devices share: records, configuration, errors, the wire codec."""
