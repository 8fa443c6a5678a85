// An empty Python module, so that `import mdlm_fast._C` works and registers the ops as torch.ops.load_library does.
// The package itself loads the library through torch, so where Python's headers are not installed (Debian keeps them
// in python3-dev) the module is left out and everything still works.
#if __has_include(<Python.h>)
#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
#endif
