#include "textflag.h"

// func Lines(addrs []uintptr)
TEXT ·Lines(SB), NOSPLIT, $0-24
	MOVD addrs_base+0(FP), R1
	MOVD addrs_len+8(FP), R2
	CBZ R2, done
next:
	MOVD.P 8(R1), R0
	PRFM (R0), PLDL1KEEP
	SUB $1, R2
	CBNZ R2, next
done:
	RET

// func Pairs(addrs []uintptr)
TEXT ·Pairs(SB), NOSPLIT, $0-24
	MOVD addrs_base+0(FP), R1
	MOVD addrs_len+8(FP), R2
	CBZ R2, done
next:
	MOVD.P 8(R1), R0
	PRFM (R0), PLDL1KEEP
	PRFM 64(R0), PLDL1KEEP
	SUB $1, R2
	CBNZ R2, next
done:
	RET
