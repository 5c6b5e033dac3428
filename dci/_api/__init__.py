"""What crosses the public interface: parameters, input validation, answer types."""
