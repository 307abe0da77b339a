"""Read COCO-format data sets and render the conveyor set; nothing here needs torch."""
