"""BERT and DistilBERT."""
