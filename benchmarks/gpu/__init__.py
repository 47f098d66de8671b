"""What one GPU does with diffjax, in a few minutes: python -m benchmarks.gpu --help"""
