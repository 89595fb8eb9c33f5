# Everything native but the Python module, and how it is compiled: also for tests/native, which needs no Python.
set(NATIVE ${CMAKE_CURRENT_LIST_DIR})
set(NATIVE_SOURCES program.cpp adapters.cpp rows.cpp streams.cpp products.cpp attention.cpp convolve.cpp delta_net.cpp delta_portable.cpp state_space.cpp state_space_portable.cpp experts.cpp matrix.cpp grids.cpp mapping.cpp
    team.cpp dispatch.cpp kernels_portable.cpp)

# macOS builds for another architecture than its own where it is told so, for two at once with the portable set alone
set(ARCHITECTURE "${CMAKE_SYSTEM_PROCESSOR}")
if(CMAKE_OSX_ARCHITECTURES)
  set(ARCHITECTURE "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(ARCHITECTURE MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND NATIVE_SOURCES delta_avx2.cpp state_space_avx2.cpp delta_avx512.cpp state_space_avx512.cpp kernels_avx2.cpp kernels_avx512.cpp)
  set_source_files_properties(${NATIVE}/delta_avx2.cpp ${NATIVE}/state_space_avx2.cpp ${NATIVE}/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(${NATIVE}/delta_avx512.cpp ${NATIVE}/state_space_avx512.cpp ${NATIVE}/kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS
      "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mprefer-vector-width=512;-Wno-uninitialized;-Wno-maybe-uninitialized")
  set_source_files_properties(${NATIVE}/delta_net.cpp ${NATIVE}/state_space.cpp ${NATIVE}/dispatch.cpp PROPERTIES COMPILE_DEFINITIONS LOCALLLM_HAS_X86_SETS)
  # only a machine without AVX2 takes it
  set_source_files_properties(${NATIVE}/kernels_portable.cpp PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O2>)
elseif(ARCHITECTURE MATCHES "^(aarch64|arm64|ARM64)$")
  list(APPEND NATIVE_SOURCES delta_neon.cpp state_space_neon.cpp kernels_neon.cpp kernels_neon_dotprod.cpp)
  set_source_files_properties(${NATIVE}/kernels_neon_dotprod.cpp PROPERTIES COMPILE_OPTIONS -march=armv8.2-a+dotprod)
  set_source_files_properties(${NATIVE}/delta_net.cpp ${NATIVE}/state_space.cpp ${NATIVE}/dispatch.cpp PROPERTIES COMPILE_DEFINITIONS LOCALLLM_HAS_NEON_SETS)
endif()
list(TRANSFORM NATIVE_SOURCES PREPEND ${NATIVE}/)

# sums must not depend on what a compiler chooses to contract: every fused multiply-add is written out
set(NATIVE_OPTIONS -Wall -Wextra -ffp-contract=off -fno-math-errno -Wno-psabi)

# The encoders of localllm/quantize: a module of their own, as that room knows no backend.
set(ENCODE_SOURCES encode.cpp encode_portable.cpp)
if(ARCHITECTURE MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND ENCODE_SOURCES encode_avx2.cpp encode_avx512.cpp)
  set_source_files_properties(${NATIVE}/encode_avx2.cpp PROPERTIES COMPILE_OPTIONS -mavx2)
  set_source_files_properties(${NATIVE}/encode_avx512.cpp PROPERTIES COMPILE_OPTIONS
      "-mavx2;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
  set_source_files_properties(${NATIVE}/encode.cpp PROPERTIES COMPILE_DEFINITIONS LOCALLLM_HAS_X86_SETS)
endif()
list(TRANSFORM ENCODE_SOURCES PREPEND ${NATIVE}/)
