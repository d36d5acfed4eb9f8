"""Score networks: inference protocols, confusion matrices, COCO AP, cost."""
