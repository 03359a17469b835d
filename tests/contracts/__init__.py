"""Tests of the sampler contracts, their generators and the logit processors."""
