"""What several tests need: tiny models, and plain, slow ways to compute the same things."""
