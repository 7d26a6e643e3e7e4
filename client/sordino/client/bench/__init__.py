"""What a step of training costs: one variant in one process, timed and weighed.

The parent that starts the processes and makes them take turns is `sordino.sim.bench`.
"""
