"""The sweep: images × variants × models, each image read once, each variant made once, its rows streamed into run folders."""
