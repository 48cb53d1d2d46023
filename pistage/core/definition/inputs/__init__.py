"""Inputs: what a definition takes from whoever runs it, by name and type; what is given is held against it.

`inputs_field` reads a declaration, `check_inputs` holds values against it, `schema_of` writes it as JSON Schema.

Where there is a choice, it is made so:
- With `inputs`, nothing else can be given. `with` at the top then holds the definition's own values, made of inputs
  and of each other; a name stands in one of the two.
- An input that is not given has its default; without one it is missing, which `required` makes an error at once.
- A default is taken as it is: templates in it are not rendered.
- A text is read as what the input takes: `3` as a number, `true` as a boolean, `a, b` or `["a", "b"]` as a list. So
  it is the same whether a value comes from a command line, a file, a `with` or JSON. A number or a boolean given for a
  string is the text that was written.
- Null is absent, as everywhere.
"""

from pistage.core.definition.inputs.checking import FAULT_CODES, Checked, Fault, chars_in, check_inputs
from pistage.core.definition.inputs.declaration import Domain, Input, Inputs, InputType
from pistage.core.definition.inputs.parsing import inputs_field
from pistage.core.definition.inputs.schema import schema_of

__all__ = [
    "FAULT_CODES", "Checked", "Domain", "Fault", "Input", "InputType", "Inputs",
    "chars_in", "check_inputs", "inputs_field", "schema_of",
]  # fmt: skip
