// The multiplexer behind two LUTs of a slice. Ref: AMD UG574, UltraScale Architecture CLB: "Multiplexers".
module MUXF7 (
    input I0, I1, S,
    output O
);
    assign O = S ? I1 : I0;
endmodule
