"""The mathematics of diffcdr, usable from a notebook: `from ml import CrossDomainRecommender`."""

__all__ = ["CrossDomainRecommender"]


def __getattr__(name: str) -> object:
    # Only when it is asked for: whoever reads the facts of models needs no torch.
    if name == "CrossDomainRecommender":
        from ml.cross_domain import CrossDomainRecommender

        return CrossDomainRecommender
    raise AttributeError(f"module 'ml' has no attribute {name!r}")
