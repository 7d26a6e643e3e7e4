"""What a base with an adapter can do, on data that whoever runs it may read.

Exact figures of records: for public data, or one's own. A client's records aren't evaluated here:
what a fleet may know of them it buys as a paid metric.
"""
