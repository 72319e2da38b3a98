"""An opened run, published weights, images, exports, model cards."""
