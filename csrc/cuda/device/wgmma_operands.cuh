// D's registers in the text of wgmma instructions, and as operands of asm: as many as its columns
// / 2.
#pragma once

#define FLASHINT8_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FLASHINT8_NAMES_32 \
  FLASHINT8_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FLASHINT8_NAMES_64                                                           \
  FLASHINT8_NAMES_32                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FLASHINT8_NAMES_96                                                           \
  FLASHINT8_NAMES_64                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FLASHINT8_NAMES_128                                                                      \
  FLASHINT8_NAMES_96                                                                             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"

#define FLASHINT8_SUMS_8(i)                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FLASHINT8_SUMS_FROM(i) \
  FLASHINT8_SUMS_8(i), FLASHINT8_SUMS_8(i + 8), FLASHINT8_SUMS_8(i + 16), FLASHINT8_SUMS_8(i + 24)
#define FLASHINT8_SUMS_16 FLASHINT8_SUMS_8(0), FLASHINT8_SUMS_8(8)
#define FLASHINT8_SUMS_32 FLASHINT8_SUMS_FROM(0)
#define FLASHINT8_SUMS_64 FLASHINT8_SUMS_32, FLASHINT8_SUMS_FROM(32)
#define FLASHINT8_SUMS_96 FLASHINT8_SUMS_64, FLASHINT8_SUMS_FROM(64)
#define FLASHINT8_SUMS_128 FLASHINT8_SUMS_96, FLASHINT8_SUMS_FROM(96)
