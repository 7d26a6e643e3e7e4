"""What several tests need: tiny models and the slow, plain ways to compute what Sordino computes."""
