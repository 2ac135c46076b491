"""The built-in simulator: batched quadrotor dynamics, vehicles and their parameters, drawing. Torch only."""
