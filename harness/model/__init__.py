"""The engine: a vision-language model with visual tokens truly removed."""
