"""Stages that sample from the model they train: a rollout, and the updates on it."""
