"""Pictures for people, and label images, drawn without ROS."""
