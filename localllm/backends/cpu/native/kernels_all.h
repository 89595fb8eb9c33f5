// The kernels, written once over lanes.h and tiles.h and compiled once per instruction set.
// Everything but the table has internal linkage and nothing of the C++ library is instantiated here: a function compiled
// for AVX2 must never be the one that the linker keeps for the portable set.
#include "kernels.h"
#include "lanes.h"
#include "products.h"
#include "tiles.h"
#include "attend.h"
#include "rowwise.h"

namespace localllm {

const Kernels& KERNEL_SET() {
    static const Kernels table = {
        KERNEL_SET_NAME, linear, gated,   head,         unpack_row, quantize, rms_norm, layer_norm, activate_rows,
        gate_mul,        add_scaled, scale_rows, softcap_rows, rope, write_keys, write_values, attend, merge, finish,
    };
    return table;
}

}  // namespace localllm
