"""Conversion of ROS messages: images, stamps and regions to numpy and back, QoS profiles, optional vision_msgs."""
