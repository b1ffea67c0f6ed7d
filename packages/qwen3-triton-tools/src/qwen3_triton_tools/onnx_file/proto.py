"""Field numbers and element types of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto."""

MODEL_IR_VERSION, MODEL_PRODUCER, MODEL_PRODUCER_VERSION = 1, 2, 3
MODEL_GRAPH, MODEL_OPSET, MODEL_FUNCTIONS = 7, 8, 25
OPSET_DOMAIN, OPSET_VERSION = 1, 2
FUNCTION_NODE = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH = 1, 3, 5, 6
ATTRIBUTE_INTS, ATTRIBUTE_TYPE = 8, 20
ATTRIBUTE_TYPE_INT, ATTRIBUTE_TYPE_TENSOR, ATTRIBUTE_TYPE_INTS = 2, 4, 7
TENSOR_DIMS, TENSOR_ELEMENT_TYPE, TENSOR_INT64_DATA, TENSOR_NAME = 1, 2, 7, 8
TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 9, 13, 14
# float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data
TENSOR_CONTENTS = (4, 5, 6, 7, 9, 10, 11)
LOCATION_EXTERNAL = 1
ENTRY_KEY, ENTRY_VALUE = 1, 2
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR = 1
TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2
SHAPE_DIMENSION = 1
DIMENSION_VALUE, DIMENSION_NAME = 1, 2

FLOAT, INT64, FLOAT16, BFLOAT16 = 1, 7, 10, 16

# TensorProto.DataType -> its name and the bits of one element.
ELEMENT_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
}


def element_name(element_type: int) -> str:
    """Name an element type; one that is not known by its number."""
    name, _ = ELEMENT_TYPES.get(element_type, (f"type {element_type}", 0))
    return name
