"""What each layer of a CNN sees, weighs and costs: for any `nn.Module`."""
