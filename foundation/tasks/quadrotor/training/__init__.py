"""Training quadrotor teachers by backpropagation through the simulator."""
