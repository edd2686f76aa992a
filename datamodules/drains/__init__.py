"""Drain conditions: objects of pictures in a YOLO folder."""
